#!/bin/sh
# The script agent of `relaymesh demo`. Standard input: first the seconds to hold the slot when the work is done, so that
# people can watch; then one path a line. Standard output, the step's result: one line "sha256  path" for each.
set -eu
IFS= read -r hold_s
while IFS= read -r path; do
    digest=$(sha256sum <"$path")
    printf '%s  %s\n' "${digest%% *}" "$path"
done
sleep "$hold_s"
