"""Every refusal: its code, its line in the user's model, its remedy; not what is refused."""
