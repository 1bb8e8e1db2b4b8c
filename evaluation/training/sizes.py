"""How an image of the digits is cut into tokens."""

SIDE, PATCH = 8, 2
TOKENS, VALUES = (SIDE // PATCH) ** 2, PATCH**2
