"""AutoAttack on a set of points: driver, ledger, ensembles, results."""
