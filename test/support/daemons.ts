/** A proxy and a cache as processes, on loopback, each with its work directory. */
import { join } from 'node:path'
import { CAPTURE_SOCKET } from '../../lib/criu/capture.ts'
import { SERVE_SOCKET } from '../../lib/criu/serve.ts'
import { type FakeDump, type FakeRestore, fakeDump, fakeRestore } from './fake-criu.ts'
import { type Running, start, temporary } from './run.ts'

export interface Daemons {
  folder: string
  source: string
  target: string
  port: string
  proxy: Running
  cache: Running
  dump(): FakeDump
  restore(): FakeRestore
  /** Ends both, and removes their directories. */
  stop(): Promise<void>
}

export async function startCache(target: string, options: string[] = [], port = '0') {
  const cache = start('cache', ['--port', port, '-D', target, ...options])
  const [, found = ''] = await cache.says(/listening on \S+:(\d+)$/m)
  await cache.says(/streamer-serve/)
  return { cache, port: found }
}

export async function startProxy(source: string, port: string, options: string[] = []): Promise<Running> {
  const proxy = start('proxy', ['--port', port, '-D', source, ...options])
  await proxy.says(/streamer-capture/)
  return proxy
}

export async function daemons(options: { proxy?: string[]; cache?: string[] } = {}): Promise<Daemons> {
  const { path, remove } = temporary()
  const [source, target] = [join(path, 'source'), join(path, 'target')]
  const { cache, port } = await startCache(target, options.cache)
  const proxy = await startProxy(source, port, options.proxy)
  return {
    folder: path,
    source,
    target,
    port,
    proxy,
    cache,
    dump: () => fakeDump(join(source, CAPTURE_SOCKET)),
    restore: () => fakeRestore(join(target, SERVE_SOCKET)),
    async stop() {
      await Promise.all([proxy.stop(), cache.stop()])
      remove()
    },
  }
}
