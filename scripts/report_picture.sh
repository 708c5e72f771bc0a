#!/usr/bin/env bash
# Takes the screenshot of the documentation: the top of a report on runs of this machine. Needs Chromium.
#   scripts/report_picture.sh [PICTURE.png]
set -euo pipefail
. "$(dirname "$0")/_env.sh"
make_environment ""
cd "$project"
picture=$(realpath -m "${1:-harness/docs/pictures/report.png}")
browser=$(command -v chromium || command -v chromium-browser || command -v google-chrome) || {
  echo "error: no Chromium on the PATH (Debian and Ubuntu: apt install chromium)" >&2
  exit 2
}
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python -m harness compare --run 'experiment=smoke backend.threads=1' --run 'experiment=smoke' --repeats 5 \
  --label 'one thread' --label 'all threads' --out "$folder/comparison"
"$browser" --headless --no-sandbox --disable-gpu --hide-scrollbars --window-size=1280,1000 \
  --screenshot="$picture" "file://$folder/comparison/report.html" > /dev/null 2>&1
echo "picture: $picture"
