"""What is PostgreSQL asked, and what is it told?"""
