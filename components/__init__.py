"""How each stage does its work: data, models, attack, training, evaluation, promotion."""
