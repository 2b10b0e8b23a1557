#!/usr/bin/env node
import { askCache } from '../lib/cache/admin.ts'
import { runCache } from '../lib/cache/server.ts'
import { cacheCommand, readCacheOptions, readCacheRequest } from '../lib/cli/cache-options.ts'
import { printHoldings } from '../lib/cli/holdings-list.ts'
import { main } from '../lib/cli/main.ts'
import { findCriu } from '../lib/criu/run.ts'
import { handleRemoteConnection } from '../lib/criu-remote/cache.ts'
import { RemoteRestores } from '../lib/criu-remote/restores.ts'
import { checkNetwork, inheritedEndpoint, inheritedListener } from '../lib/stream/endpoint.ts'

main(cacheCommand, async ({ values, rest, ...life }) => {
  const request = readCacheRequest(values)
  if (request !== undefined) {
    const answer = await askCache(request.directory, request)
    return answer === 'done' || answer === undefined ? undefined : printHoldings(answer, request.json)
  }
  const choice = readCacheOptions(values, rest)
  const { host, port, listener, connection, insecure, criuRemote, restore, ...options } = choice
  const where = listener === undefined ? { host, port } : inheritedListener(listener)
  if (where.port !== undefined) await checkNetwork(where.host, options.credentials, insecure)
  const peer = connection === undefined ? undefined : await inheritedEndpoint(connection, insecure)
  await runCache({
    ...options,
    ...where,
    first: peer?.take(),
    handler: criuRemote ? handleRemoteConnection : undefined,
    openRestores: (script, context) => new RemoteRestores(script, context),
    restore: restore && { ...restore, criu: findCriu(restore.criu) },
    ...life,
  })
})
