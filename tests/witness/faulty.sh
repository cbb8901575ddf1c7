#!/bin/sh
# Does what its second argument says, as a witness for `exec:` should not.
case $2 in
  [0-9])
    printf 'it said why\n' >&2
    exit "$2"
    ;;
  killed) kill -9 $$ ;;
  garbage) printf 'a register\n' ;;
  expected) head -n 1 ;;
  nothing) ;;
  flood) exec yes ;;
  talkative) head -c 1000000 /dev/zero >&2 ;;
  hang)
    sleep 1000 &
    printf '%s\n' $$ $! >> "$(dirname "$0")/pids"
    wait
    ;;
  daemon)
    sleep 1000 &
    printf '%s\n' $! >> "$(dirname "$0")/pids"
    ;;
esac
