#!/bin/bash
# Builds the template code-interpreter-v1 unless it exists: the server of the recipe, with
# Python packages that this machine downloads, so that guests need no package mirror. What
# only the recipe has (pandas, scipy, the kernel for bash, …) is missing.
# WRENN_API_URL and WRENN_API_KEY say where Wrenn is.
set -euo pipefail
cd "$(dirname "$0")/../.."
wrenn=$PWD/bin/wrenn
state=$("$wrenn" template get code-interpreter-v1 2>/dev/null | sed -n 's/^state *//p') || state=
case $state in
ready) exit 0 ;;
building) exec "$wrenn" template logs --follow code-interpreter-v1 ;;
esac

context=.cache/sdk/interpreter
mkdir -p "$context"
if ! [ -d "$context/site" ]; then
	rm -rf "$context/part"
	python3 -m pip install -q --disable-pip-version-check --target "$context/part" --python-version 3.11 --only-binary=:all: \
		jupyter_client ipykernel matplotlib numpy # 3.11 is the guest image's
	# the stubs of completion are half of all files
	find "$context/part" \( -name __pycache__ -o -name tests -o -path "*/jedi/third_party" \) -prune -exec rm -rf {} +
	mv "$context/part" "$context/site"
fi
cp images/templates/code-interpreter-v1/server.py "$context/"
cat >"$context/Dockerfile" <<'EOF'
FROM base
USER root
COPY site /usr/local/lib/python3.11/dist-packages
COPY server.py /usr/local/lib/code-interpreter/server.py
USER user
WORKDIR /home/user
CMD ["python3", "/usr/local/lib/code-interpreter/server.py"]
EOF
"$wrenn" template build code-interpreter-v1 -f "$context/Dockerfile" --from-template base --vcpus 2 --memory 2048 \
	--ready-cmd 'curl -sf http://127.0.0.1:49999/health' --ready-timeout 10m "$context"
