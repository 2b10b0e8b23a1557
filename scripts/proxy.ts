#!/usr/bin/env node
import { main } from '../lib/cli/main.ts'
import { proxyCommand, readProxyOptions } from '../lib/cli/proxy-options.ts'
import { ImageProxy } from '../lib/commands/proxy.ts'
import { RemoteDelivery } from '../lib/criu-remote/proxy.ts'
import { ferryDelivery } from '../lib/precopy/ferry-delivery.ts'
import { checkNetwork, inheritedEndpoint } from '../lib/stream/endpoint.ts'
import { tuningOf } from '../lib/stream/tuning.ts'

main(proxyCommand, async ({ values, rest, ...life }) => {
  const { cache: at, insecure, agreed, send, remote, ...place } = readProxyOptions(values, rest)
  if (at.kind === 'tcp') await checkNetwork(at.host, at.credentials, insecure)
  const cache = at.kind === 'tcp' ? at : await inheritedEndpoint(at.fd, insecure)
  const way = { ...agreed, cache, tuning: tuningOf(send, life.report) }
  const delivery = remote ? new RemoteDelivery({ ...way, ...remote }) : ferryDelivery(way)
  await new ImageProxy({ ...place, delivery, ...life }).run()
})
