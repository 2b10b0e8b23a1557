#!/usr/bin/env node
import { askCache } from '../lib/cache/admin.ts'
import { runCache } from '../lib/cache/server.ts'
import { cacheOptions, cacheUsage, readCacheOptions, readCacheRequest } from '../lib/cli/cache-options.ts'
import { printHoldings } from '../lib/cli/holdings-list.ts'
import { main } from '../lib/cli/main.ts'
import { commandName } from '../lib/command-name.ts'
import { findCriu } from '../lib/criu/run.ts'
import { handleRemoteConnection } from '../lib/criu-remote/cache.ts'
import { openRemoteRestores } from '../lib/criu-remote/restores.ts'
import { notify } from '../lib/kernel/notify.ts'
import { checkNetwork, inheritedEndpoint, inheritedListener } from '../lib/stream/endpoint.ts'

const command = { name: commandName('cache'), usage: cacheUsage, options: cacheOptions, daemon: { notify } }

main(command, async ({ values, rest, ...life }) => {
  const request = readCacheRequest(values)
  if (request !== undefined) {
    const answer = await askCache(request.directory, request)
    return answer === 'done' || answer === undefined ? undefined : printHoldings(answer, request.json)
  }
  const { host, port, listener, connection, protection, criuRemote, restore, ...options } = readCacheOptions(
    values,
    rest,
  )
  const { credentials, allowUids, insecure } = protection
  const where = listener === undefined ? { host, port } : inheritedListener(listener)
  if (where.port !== undefined) await checkNetwork(where.host, credentials, insecure)
  const peer = connection === undefined ? undefined : await inheritedEndpoint(connection, insecure)
  await runCache({
    ...options,
    ...where,
    credentials,
    allowUids,
    first: peer?.take(),
    hear: criuRemote ? handleRemoteConnection : undefined,
    openRestores: openRemoteRestores,
    restore: restore && { ...restore, criu: findCriu(restore.criu) },
    ...life,
  })
})
