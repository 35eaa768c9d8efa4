"""Recurrent operators, each as its definition (`naive`) and in chunked form."""
