"""Which migrations does an edit of the models need?"""
