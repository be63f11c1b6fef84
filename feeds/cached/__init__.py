"""What does Redis hold of a feed, who puts it there, and who believes it?"""
