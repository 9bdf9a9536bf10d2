"""What is known of each image beside its identity: head pose by a model, and the lists that data sets ship."""
