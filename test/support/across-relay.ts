/** A restoring cache on another host, and a proxy whose link to it goes through a relay that breaks it. */
import { join } from 'node:path'
import { type Relay, startRelay } from './breaking-relay.ts'
import { startProxy } from './daemons.ts'
import { type Host, startHost } from './host.ts'
import type { Load, Started } from './loads.ts'
import { type Running, root, run, start, temporary } from './run.ts'

export interface AcrossRelay {
  host: Host
  started: Started
  cache: Running
  proxy: Running
  relay: Relay
  /** Dumps the load, held until the proxy says how it ends. */
  dump(criu: string): ReturnType<typeof run>
}

/** Starts all of it, plays, and ends it. `plans`: how each connection breaks. */
export async function acrossRelay(
  load: Load,
  options: readonly string[],
  plans: Parameters<Relay['plan']>,
  play: (scene: AcrossRelay) => Promise<void>,
): Promise<void> {
  const { path, remove } = temporary()
  const [source, target] = [join(path, 'source'), join(path, 'target')]
  const host = await startHost()
  const started = await load.start(path)
  const [enter = '', ...inside] = host.enter
  const serving = [join(root, 'scripts', 'bin', 'cache'), '--port', '0', '-D', target, '--restore']
  const cache = start(enter, [...inside, ...serving])
  const [, port = ''] = await cache.says(/listening on 127\.0\.0\.1:(\d+)/)
  await cache.says(/streamer-serve/)
  const relay = await startRelay(port)
  relay.plan(...plans)
  const proxy = await startProxy(source, relay.port, [...options])
  try {
    const dump = (criu: string): ReturnType<typeof run> => dumpBy(criu, started.pid, path, source)
    await play({ host, started, cache, proxy, relay, dump })
  } finally {
    started.kill()
    await Promise.all([proxy.stop(), cache.stop()])
    await host.stop()
    relay.close()
    remove()
  }
}

/** A dump into the proxy of `source`, held until the proxy says how it ends. */
export function dumpBy(criu: string, pid: number, folder: string, source: string): ReturnType<typeof run> {
  const options = ['-t', String(pid), '-D', source, '--action-script', join(source, 'post-dump')]
  return run(criu, ['dump', '--stream', ...options], { cwd: folder })
}
