#!/bin/sh
# A virtual environment for pfl 0.6, which wants other versions than this project: sh pfl_env.sh FOLDER
# torch first, of the version that the project is measured with (constraints.txt). Then name its python:
#   python experiments/benchmarks/throughput.py --pfl-python FOLDER/bin/python
set -eu
folder=${1:?the folder of the new environment}
here=$(dirname "$0")
torch=$(grep '^torch==' "$here/../../../constraints.txt")
"${PYTHON:-python3}" -m venv "$folder"
"$folder/bin/pip" install --quiet "$torch"
"$folder/bin/pip" install --quiet 'pfl==0.6.*'
"$folder/bin/python" -c 'import pfl, torch; print("pfl with torch", torch.__version__)'
