"""The kubelet's probe when /health and /ready require the API key. The argument is the URL."""

import os
import sys
import urllib.request

key = os.environ["TRAINYARD_SERVING_API_KEY"].split(",")[0].strip()
request = urllib.request.Request(sys.argv[1], headers={"Authorization": f"Bearer {key}"})
# No proxy. A status other than 2xx raises an error, so that the exit status is not 0.
urllib.request.build_opener(urllib.request.ProxyHandler({})).open(request, timeout=30)
