"""``meltr new-backbone``: writes a complete package for a backbone plugin from templates."""
