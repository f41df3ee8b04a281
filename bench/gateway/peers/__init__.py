"""The plain proxies that Mulligan is measured beside: each is what a tutorial would have you write."""
