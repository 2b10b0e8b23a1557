#!/usr/bin/env node
import { main } from '../lib/cli/main.ts'
import { proxyOptions, proxyUsage, readProxyOptions } from '../lib/cli/proxy-options.ts'
import { commandName } from '../lib/command-name.ts'
import { runProxy } from '../lib/commands/proxy.ts'
import { remoteDelivery } from '../lib/criu-remote/proxy.ts'
import { notify } from '../lib/kernel/notify.ts'
import { ferryDelivery } from '../lib/precopy/delivery.ts'
import { checkNetwork, inheritedEndpoint } from '../lib/stream/endpoint.ts'
import { tuningOf } from '../lib/stream/tuning.ts'

const command = { name: commandName('proxy'), usage: proxyUsage, options: proxyOptions, daemon: { notify } }

main(command, async ({ values, ...life }) => {
  const { cache: at, insecure, agreed, send, remote, ...place } = readProxyOptions(values)
  if (at.kind === 'tcp') await checkNetwork(at.host, at.credentials, insecure)
  const cache = at.kind === 'tcp' ? at : await inheritedEndpoint(at.fd, insecure)
  const way = { ...agreed, cache, tuning: tuningOf(send, life.report) }
  const delivery = remote ? remoteDelivery({ ...way, ...remote }) : ferryDelivery(way)
  await runProxy({ ...place, delivery, ...life })
})
