"""The kubelet's probe where /health and /ready ask for the API key: argument is the URL."""

import os
import sys
import urllib.request

key = os.environ["TRAINYARD_SERVING_API_KEY"].split(",")[0].strip()
request = urllib.request.Request(sys.argv[1], headers={"Authorization": f"Bearer {key}"})
# No proxy, and any status but 200 ends this with a status other than 0.
urllib.request.build_opener(urllib.request.ProxyHandler({})).open(request, timeout=30)
