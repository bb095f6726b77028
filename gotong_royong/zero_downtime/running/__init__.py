"""How are migrations applied and taken back, and what is known of what was done?"""
