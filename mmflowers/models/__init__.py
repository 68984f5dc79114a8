"""Parts of networks: the classifier layer, the data preprocessor."""
