"""Lists the concepts that demonstrations show; tests may use all others.

Numbers, flags, hearts, shapes, signs and persons occur in no demonstration. A
policy can know them from web data only.
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
