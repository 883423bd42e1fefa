# The entries of a lock file whose package matches `only`, with their hashes: one layer of the image.
/^[A-Za-z0-9]/ { split($1, name, "=="); on = name[1] ~ only }
on && !/^ *#/ { print }
