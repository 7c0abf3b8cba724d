#!/bin/sh
# Install a locked requirements file into the image's virtual environment.
#
# uv does the work in seconds, and is gone before the layer is closed. What the building machine
# needs to reach its package index (authority, index address) comes as build secrets: it is there
# while this runs and never part of the image.
set -eu
if [ -s /run/secrets/ca ]; then
    export SSL_CERT_FILE=/run/secrets/ca PIP_CERT=/run/secrets/ca REQUESTS_CA_BUNDLE=/run/secrets/ca
fi
if [ -s /run/secrets/index ]; then
    set -a
    . /run/secrets/index
    set +a
fi
lock=$1
folder=$(dirname "$0")
python3 -m venv /tmp/uv
/tmp/uv/bin/pip install --quiet --no-cache-dir --disable-pip-version-check \
    --require-hashes -r "$folder/uv.txt"
UV_HTTP_TIMEOUT=300 /tmp/uv/bin/uv pip install --quiet --no-cache --compile-bytecode \
    --python /opt/venv/bin/python --require-hashes -r "$lock"
rm -rf /tmp/uv
