"""Is the simulator right? Its pieces against independent tools, published numbers and laws of their own."""
