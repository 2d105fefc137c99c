"""The reading room: a service that names cells, and keeps cases that people review and sign out. Needs no torch.

settings       what it is told when it starts; limits
run            a server with the application, until a signal says to stop
probe          whether a server answers
app            endpoints, guard and page put together
service        all that a running service holds
guard          before every endpoint: host names, origins, sizes, patience, rates, headers
auth           tokens, browser logins, roles
problems       the one form of every refusal
api            the endpoints, thin; /openapi.json is their contract
pages          the files of the page, from memory
page           the page itself: static files
models         a loaded model with its queue and its reference set
batcher        pictures of many clients through one model, a bounded queue before it
annotator      the model's answers for uploaded cells, in the background
pictures       what a client sent to pixels, and pixels to what a browser may see
explaining     heat maps
reference      labelled cells to compare a cell with
counting       the differential of a case at this moment
adjusting      the same without the confusions that the model is known to make
exporting      a case as CSV, JSON, FHIR and HTML
exporting_pdf  a case as PDF
metrics        counters for Prometheus
store          database, migrations, pictures on the disk, backup

How the page is served: every file of ``page/`` is read once when the service starts. ``/`` is ``index.html``, any other
file is ``/page/NAME`` (one level, no sub-folders; .html, .js, .css, .json, .svg), with an ETag and ``no-cache``. The
content security policy is `guard.CSP`: scripts and styles only as files of ``/page/``, no inline script, no inline
style (neither <style> nor a style attribute in HTML; ``element.style.x = ...`` from a script is allowed), pictures from
the service and from blob: URLs, requests to the service alone. All text of the page is in ``page/en.json``.

What the page needs of the API, in the order of use: GET /v1/session (401: show the token form; POST /v1/session),
GET /v1/models, GET/POST /v1/cases, POST /v1/cases/ID/cells/missing and /cells, GET /v1/cases/ID/cells with
``changed_since``, .../thumbnail, .../picture, .../explanation, .../similar, PATCH a cell with its ``version``, POST
.../undo, GET .../differential (``adjusted=false`` after each change, whole when it is quiet), POST .../sign with its
``case_version``, GET .../export/FORMAT. Each change carries X-CSRF-Token where
the session has one. A 409 holds the present cells in ``detail``.
"""

from __future__ import annotations
