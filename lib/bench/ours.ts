/** Our own way: criu dump --stream, proxy, cache, criu restore --stream. */
import { watch } from 'node:fs'
import { join } from 'node:path'
import { descendants } from '../kernel/process.ts'
import { says } from './children.ts'
import { cpuSeconds, peakBytes, residentBytes } from './machine.ts'
import { type Contender, type Course, type Figures, frozenIn, seconds } from './workload.ts'

/** How our commands are run. */
export interface Commands {
  node: readonly string[]
  scripts: string
  /** `.js` where they are built. */
  suffix: string
  env?: Record<string, string>
  /** Options of the proxy. */
  proxy?: readonly string[]
  /** `cache --release-early`, with what it and the process hold. */
  releaseEarly?: boolean
}

export function ours(name: string, what: string, commands: Commands): Contender {
  return { name, what, run: (course) => move(course, commands) }
}

async function move(course: Course, commands: Commands): Promise<Figures> {
  const { proxy: options = [], releaseEarly = false } = commands
  const [source, target] = [course.make('source'), course.make('target')]
  const early = releaseEarly ? ['--release-early'] : []
  const cache = begin(course, commands, 'cache', ['--port', '0', '-D', target, ...early])
  const port = await says(cache.child, /127\.0\.0\.1:(\d+)[\s\S]*streamer-serve/)
  const cacheStart = cache.lasted()
  const proxy = begin(course, commands, 'proxy', ['--port', port, '-D', source, ...options])
  await says(proxy.child, /listening on (.*)/)
  const proxyStart = proxy.lasted()
  proxy.cpu()
  const handed = says(proxy.child, /: (\d+) images,[\s\S]*handed over/)
  const size = residentBytes([course.pid])
  const ahead = beforeFreeze(source, cache.cpu)
  const begun = performance.now()
  const script = (directory: string, moment: string): string[] => ['--action-script', join(directory, moment)]
  await course.dump(source, '--stream', ...script(source, 'post-dump'))
  await course.gone
  const peak = releaseEarly ? watchPeak(() => held(course.pid, proxy.child.pid)) : undefined
  await course.restore(target, '--stream', ...(releaseEarly ? script(target, 'post-restore') : []))
  const total = seconds(begun)
  const both = peak?.()
  const images = Number(await handed)
  return {
    total,
    frozen: frozenIn(source),
    proxyCpu: proxy.cpu(),
    cacheCpu: cache.cpu(),
    cacheAheadCpu: ahead(),
    proxyPeak: peakBytes(proxy.child.pid),
    cachePeak: peakBytes(cache.child.pid),
    proxyStart,
    cacheStart,
    images,
    ...(both !== undefined && { bothPeak: both / size }),
  }
}

function begin(course: Course, { node, scripts, suffix, env }: Commands, command: string, args: string[]) {
  const [program = 'node', ...execArgs] = node
  const since = performance.now()
  const script = join(scripts, `${command}${suffix}`)
  const child = course.start(program, [...execArgs, script, ...args], { env: { ...process.env, ...env } })
  let before: number | undefined
  return {
    child,
    /** Seconds since it was started. */
    lasted: () => seconds(since),
    /** Seconds of processor time since this was first asked. */
    cpu() {
      const now = cpuSeconds(child.pid)
      before ??= now
      return now - before
    },
  }
}

/** What `measure` says when the proxy lets criu freeze the tasks; 0 where it never did. */
function beforeFreeze(source: string, measure: () => number): () => number {
  measure()
  let measured: number | undefined
  const watcher = watch(source, (_event, name) => {
    if (name?.endsWith('.pre-dump.go') === true) measured ??= measure()
  })
  return () => {
    watcher.close()
    return measured ?? 0
  }
}

/** Bytes of what is restored, and of all that we have started but the proxy. */
function held(pid: number, proxy: number | undefined): number {
  const all = new Set([...descendants(process.pid), pid, ...descendants(pid)])
  return residentBytes([...all].filter((each) => each !== proxy))
}

const SAMPLE_MS = 3

/** The largest value from now until the returned function is called. */
function watchPeak(measure: () => number): () => number {
  let peak = 0
  const timer = setInterval(() => {
    peak = Math.max(peak, measure())
  }, SAMPLE_MS)
  return () => {
    clearInterval(timer)
    return peak
  }
}
