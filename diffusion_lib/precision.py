"""How float32 matrix products are computed."""


# float32: plain float32 products.
PRECISIONS = ("float32",)
