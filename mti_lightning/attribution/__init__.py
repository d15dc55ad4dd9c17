"""Attribution: what each activation adds to a response, and the two signs of it."""
