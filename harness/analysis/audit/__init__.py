"""Is a published table of training speeds possible, consistent, and does it show what it is said to show?"""
