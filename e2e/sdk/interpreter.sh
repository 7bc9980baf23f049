#!/bin/bash
# Builds the template code-interpreter-v1 unless it exists: the recipe, with Python packages
# that this machine downloads, so that guests need no mirrors of packages. What the server
# does not need is missing, but for matplotlib: pip, pandas, scipy, …
# WRENN_API_URL and WRENN_API_KEY say where Wrenn is.
set -euo pipefail
cd "$(dirname "$0")/../.."
wrenn=$PWD/bin/wrenn
state=$("$wrenn" template get code-interpreter-v1 2>/dev/null | sed -n 's/^state *//p') || state=
case $state in
ready) exit 0 ;;
building) exec "$wrenn" template logs --follow code-interpreter-v1 ;;
esac

recipe=images/templates/code-interpreter-v1
context=.cache/sdk/interpreter
mkdir -p "$context"
if ! cmp -s "$recipe/requirements.txt" "$context/requirements.txt"; then
	rm -rf "$context/site"
	python3 -m pip install -q --disable-pip-version-check --target "$context/site" --no-compile --python-version 3.11 --only-binary=:all: \
		-c "$recipe/requirements.txt" bash_kernel ipykernel jupyter_client matplotlib tornado # 3.11 is the guest image's
	find "$context/site" \( -name tests -o -path '*/jedi/third_party' \) -prune -exec rm -rf {} + # not needed, but many files
fi
cp "$recipe"/* "$context/"
# The packages are copied where the recipe installs them.
sed -e '/^RUN apt-get/,/chown/c RUN chown -R user:user /usr/local' \
	-e '/python-wheels/d' -e 's|^RUN pip install.*|COPY site /usr/local/lib/python3.11/dist-packages|' "$recipe/Dockerfile" >"$context/Dockerfile"
"$wrenn" template build code-interpreter-v1 -f "$context/Dockerfile" --from-template base --vcpus 2 --memory 2048 \
	--ready-cmd 'curl -sf http://127.0.0.1:49999/health' --ready-timeout 10m "$context"
