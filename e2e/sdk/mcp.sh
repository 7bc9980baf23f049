#!/bin/bash
# Builds the template mcp-gateway unless it exists: the recipe without what it installs for
# servers of npm and PyPI, and with a server that needs nothing but Python.
# WRENN_API_URL and WRENN_API_KEY say where Wrenn is.
set -euo pipefail
cd "$(dirname "$0")/../.."
if bin/wrenn template get mcp-gateway 2>/dev/null | grep -q '^state *ready'; then exit 0; fi

context=.cache/sdk/mcp
mkdir -p "$context"
cp bin/mcp-gateway e2e/sdk/mcp-server.py "$context/"
sed -e '/^RUN /,/; }$/d' images/templates/mcp-gateway/Dockerfile >"$context/Dockerfile"
sed -i '/^COPY/a COPY mcp-server.py /srv/mcp-server.py' "$context/Dockerfile"
bin/wrenn template build mcp-gateway -f "$context/Dockerfile" --from-template base --vcpus 1 --memory 512 "$context"
