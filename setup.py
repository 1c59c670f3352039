"""What pyproject.toml cannot say: the configurations travel in the wheel, as the package `robust_vit._configs`."""

from setuptools import find_packages, setup

setup(
    packages=[*find_packages(include=["robust_vit", "robust_vit.*"]), "robust_vit._configs"],
    package_dir={"robust_vit._configs": "configs"},
    package_data={"robust_vit": ["**/*.json", "analysis/report/templates/*"], "robust_vit._configs": ["**/*.py"]},
)
