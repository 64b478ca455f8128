"""Clients' orders: what may be asked for, and how an order becomes a request to the runtime."""
