"""Pictures: files, folders, tar files and drawn ones, as a backbone sees them."""
