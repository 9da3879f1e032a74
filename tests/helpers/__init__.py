"""What tests share: servers, devices, documents and processes."""
