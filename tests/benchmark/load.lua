-- What wrk asks, after `--`: METHOD PATH BODY SERVICES ENDPOINTS VERSION. In path and body stand {s} for the number of the
-- service, {e} for that of the endpoint and {v} for a number that grows with every round over the fleet.

local method, path, body, services, endpoints, version
local count = 0
local ready = {}

local function filled(text, service, endpoint, round)
  return (text:gsub("{(%a)}", { s = service, e = endpoint, v = round }))
end

function init(args)
  method, path, body = args[1], args[2], args[3]
  services, endpoints, version = tonumber(args[4]), tonumber(args[5]), tonumber(args[6])
  if body ~= "" then
    wrk.headers["Content-Type"] = "application/json"
    return
  end
  for service = 0, services - 1 do -- built once: the client must not be what is measured
    ready[service] = wrk.format(method, filled(path, service, 0, version))
  end
end

function request()
  local service, round = count % services, math.floor(count / services)
  count = count + 1
  if body == "" then
    return ready[service]
  end
  local endpoint, lap = round % endpoints, version + math.floor(round / endpoints)
  return wrk.format(method, filled(path, service, endpoint, lap), nil, filled(body, service, endpoint, lap))
end

function done(summary, latency)
  local errors = summary.errors
  io.write(string.format(
    '\n{"requests": %d, "seconds": %f, "p50_ms": %f, "p99_ms": %f, "refused": %d, "broken": %d}\n',
    summary.requests, summary.duration / 1e6, latency:percentile(50) / 1e3, latency:percentile(99) / 1e3,
    errors.status, errors.connect + errors.read + errors.write + errors.timeout
  ))
end
