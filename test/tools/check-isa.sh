#!/bin/sh
# Checks that the objects for one instruction set define no weak symbol. The linker keeps only one
# copy of a weak symbol, perhaps the AVX-512 one, and an older CPU would then stop with SIGILL.
# Usage: test/tools/check-isa.sh BUILD_DIR
set -eu

if [ $# -ne 1 ] || [ ! -d "$1" ]; then
  echo "usage: $0 BUILD_DIR" >&2
  exit 2
fi

objects=$(find "$1" -path '*cpu_*.dir/*' \( -name '*.o' -o -name '*.obj' \) | sort)
if [ -z "$objects" ]; then
  echo "check-isa: no objects of the targets cpu_* under $1: build first" >&2
  exit 2
fi

status=0
count=0
for object in $objects; do
  count=$((count + 1))
  weak=$(nm -C "$object" | grep -E ' [WVu] ' || true)
  if [ -n "$weak" ]; then
    echo "check-isa: weak symbols in $object:" >&2
    echo "$weak" >&2
    status=1
  fi
done
[ $status -eq 0 ] && echo "check-isa: $count objects, no weak symbols"
exit $status
