"""What the robot's demonstrations show; a test may use anything else.

Numbers, flags, hearts, shapes, signs and persons occur in none: what a policy
knows about them, it knows from the web's pictures.
"""

SEEN_STYLE = "noto"
SEEN_CONCEPTS = (
  *("apple", "banana", "pineapple", "watermelon"),
  *("carrot", "aubergine", "corn"),
  *("bread", "hamburger", "cheese", "egg"),
  *("doughnut", "lollipop", "milk", "coffee"),
  *("dog", "elephant", "frog", "lion", "panda", "zebra"),
  *("penguin", "owl", "octopus", "crab", "bee", "ladybird"),
  *("cactus", "sunflower", "tree"),
  *("car", "bicycle", "rocket", "sailboat"),
  *("house", "castle", "moon", "rainbow", "fire"),
  *("T-shirt", "crown", "running shoe"),
  *("hammer", "scissors", "magnet"),
  *("chair", "umbrella", "bucket", "camera", "laptop"),
  *("guitar", "drum", "football", "basketball", "balloon", "gift"),
)
