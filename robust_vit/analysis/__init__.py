"""Pictures that explain a run: curves, adversarial examples, accuracy against epsilon."""
