/** A load, a second host that it goes to, and the commands on both: what the tests of a hand-over play on. */
import { readFileSync } from 'node:fs'
import { join } from 'node:path'
import { setTimeout } from 'node:timers/promises'
import { type Host, startHost } from './host.ts'
import type { Load, Started } from './loads.ts'
import { type Running, root, start, temporary } from './run.ts'

export interface Stage {
  folder: string
  /** The proxy's work directory. */
  source: string
  /** The cache's work directory. */
  target: string
  load: Started
  host: Host
  /** Throws unless the load goes on on the target, whole, and nowhere else. */
  arrived(): Promise<void>
  /** Throws unless the load goes on here, whole, and nowhere else. */
  stayed(): Promise<void>
  /** Runs a program here. */
  here(program: string, args: string[]): Running
  /** Runs a program on the target. */
  there(program: string, args: string[]): Running
  /** The number of the cache here. What `cache` returns is the program that entered the target. */
  cachePid(): number
  /** Starts a cache on the target. */
  cache(...options: string[]): Promise<{ cache: Running; port: string }>
  proxy(port: string, ...options: string[]): Promise<Running>
  /** `criu dump --stream` with our script. */
  dump(...options: string[]): Running
}

export function command(name: string): string {
  return join(root, 'scripts', 'bin', name)
}

export async function staged(criu: string, load: Load, body: (stage: Stage) => Promise<void>): Promise<void> {
  const { path, remove } = temporary()
  const host = await startHost()
  const started = await load.start(path)
  const [source, target] = [join(path, 'source'), join(path, 'target')]
  const running: Running[] = []
  const begin = (program: string, args: string[]): Running => {
    const run = start(program, args, { cwd: path })
    running.push(run)
    return run
  }
  const stage: Stage = {
    folder: path,
    source,
    target,
    load: started,
    host,
    async arrived() {
      await started.gone
      await started.verify(host.outerPid(started.pid))
    },
    async stayed() {
      await started.runsOn()
      await started.whole()
      if ((await copyOf(stage)) !== 'none') throw new Error('a copy is on the target')
    },
    here: begin,
    there(program, args) {
      const [enter = '', ...options] = host.enter
      return begin(enter, [...options, program, ...args])
    },
    cachePid: () => host.outerPid(Number(readFileSync(join(path, 'cache.pid'), 'utf8'))),
    async cache(...options) {
      const pidfile = ['--pidfile', join(path, 'cache.pid')]
      const cache = stage.there(command('cache'), ['--port', '0', '-D', target, ...pidfile, ...options])
      const [, port = ''] = await cache.says(/listening on 127\.0\.0\.1:(\d+)/)
      await cache.says(/streamer-serve/)
      return { cache, port }
    },
    async proxy(port, ...options) {
      const proxy = begin('proxy', ['--port', port, '-D', source, ...options])
      await proxy.says(/streamer-capture/)
      return proxy
    },
    dump: (...options) =>
      begin(criu, [
        ...['dump', '--stream', '-t', String(started.pid), '-D', source],
        ...['--action-script', join(source, 'post-dump'), ...options],
      ]),
  }
  try {
    await body(stage)
  } finally {
    started.kill()
    await host.stop()
    for (const run of running) run.child.kill('SIGKILL')
    await Promise.all(running.map((run) => run.ended))
    remove()
  }
}

/**
 * What is to be seen of the load on the target. A task that CRIU holds at post-restore sleeps, and is woken by nothing.
 */
export async function copyOf({ host, load }: Stage): Promise<'none' | 'held' | 'runs'> {
  const status = (): string => {
    try {
      return readFileSync(`/proc/${host.outerPid(load.pid)}/status`, 'utf8')
    } catch {
      return ''
    }
  }
  const switches = (text: string): string | undefined => /^voluntary_ctxt_switches:\s+(\d+)/m.exec(text)?.[1]
  const before = status()
  if (before === '' || /^State:\s+[ZX]/m.test(before)) return 'none'
  await setTimeout(300)
  return switches(before) === switches(status()) ? 'held' : 'runs'
}

/** What is to be seen of the load here. */
export function originalOf({ load }: Stage): 'gone' | 'frozen' | 'runs' {
  try {
    const status = readFileSync(`/proc/${load.pid}/status`, 'utf8')
    if (/^State:\s+[ZX]/m.test(status)) return 'gone'
    return /^TracerPid:\s+[1-9]/m.test(status) || /^State:\s+[Tt]/m.test(status) ? 'frozen' : 'runs'
  } catch {
    return 'gone'
  }
}
