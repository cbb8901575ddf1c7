#!/bin/sh
# A register in a file beside this script, under a lock: a witness for `exec:`, and an example of one.
set -eu
dir=$(dirname "$0")
register=$dir/$2
exec 9> "$register.lock"
flock 9
case $1 in
  read) ;;
  swap)
    IFS= read -r expected
    IFS= read -r new
    now=
    [ ! -e "$register" ] || IFS= read -r now < "$register"
    if [ "$now" = "$expected" ]; then
      printf '%s\n' "$new" > "$register.new"
      sync "$register.new"
      mv "$register.new" "$register"
      sync "$dir"
    fi
    ;;
  *) exit 3 ;;
esac
[ ! -e "$register" ] || cat "$register"
