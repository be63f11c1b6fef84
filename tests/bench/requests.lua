-- Sends requests with wrk, one after the other, and prints the result as JSON at the end.
--
-- Environment variables: KEY, the API key; REQUESTS, a file that holds on each line a path, a space and, optionally, an
-- organisation.
local prepared, turn = {}, 0

function init()
  for line in io.lines(os.getenv("REQUESTS")) do
    local path, org_id = line:match("^(%S+) (%S*)$")
    local headers = { ["Authorization"] = "Bearer " .. os.getenv("KEY") }
    if org_id ~= "" then
      headers["X-Org-ID"] = org_id
    end
    prepared[#prepared + 1] = wrk.format("GET", path, headers)
  end
end

function request()
  turn = turn % #prepared + 1
  return prepared[turn]
end

function done(summary, latency)
  local errors = summary.errors
  io.write(string.format('\n{"requests": %d, "seconds": %f, "bytes": %d, "failed": %d, "p50_ms": %f, "p99_ms": %f}\n',
    summary.requests, summary.duration / 1e6, summary.bytes,
    errors.connect + errors.read + errors.write + errors.status + errors.timeout,
    latency:percentile(50) / 1e3, latency:percentile(99) / 1e3))
end
