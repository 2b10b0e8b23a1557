/** A cache that runs, looked at from outside: its memory, its descriptors, what it says of itself. */
import { readdirSync, readFileSync, writeFileSync } from 'node:fs'
import { setTimeout } from 'node:timers/promises'
import { parseSize } from '../../lib/size.ts'
import type { Running } from './run.ts'

export interface Status {
  snapshots: number
  chains: number
  /** Bytes. */
  memory: number
  links: number
  silent: number
  /** Bytes that it holds for peers. */
  peers: number
  parked: number
}

export interface Watched {
  /** Bytes resident now, and the most since `forget`. */
  rss(): number
  peak(): number
  forget(): void
  descriptors(): number
  status(): Promise<Status>
}

const LINE = new RegExp(
  String.raw`status: snapshots: (\d+), chains: (\d+), memory: ([\d.]+ \w+) of .*?, links: (\d+), silent: (\d+), ` +
    String.raw`held for peers: ([\d.]+ \w+), restores that wait: (\d+)`,
  'g',
)

const bytes = (text = ''): number => parseSize(text.replace(' ', ''))

export function watched({ child, stderr }: Running): Watched {
  const field = (name: string): number => {
    const text = readFileSync(`/proc/${child.pid}/status`, 'utf8')
    return Number(new RegExp(`^${name}:\\s+(\\d+) kB`, 'm').exec(text)?.[1]) * 1024
  }
  return {
    rss: () => field('VmRSS'),
    peak: () => field('VmHWM'),
    // Linux, Documentation/filesystems/proc.rst: 5 resets the peak.
    forget: () => writeFileSync(`/proc/${child.pid}/clear_refs`, '5'),
    descriptors: () => readdirSync(`/proc/${child.pid}/fd`).length,
    async status() {
      const lines = () => [...stderr().matchAll(LINE)]
      const before = lines().length
      child.kill('SIGUSR1')
      for (const end = performance.now() + 20_000; performance.now() < end; await setTimeout(20)) {
        const [, snapshots, chains, memory, links, silent, peers, parked] = lines()[before] ?? []
        if (snapshots === undefined) continue
        return {
          snapshots: Number(snapshots),
          chains: Number(chains),
          memory: bytes(memory),
          links: Number(links),
          silent: Number(silent),
          peers: bytes(peers),
          parked: Number(parked),
        }
      }
      throw new Error('the cache does not say how it is')
    },
  }
}

/** Looks until `settled` holds, and throws what was seen last where that takes longer than `limitMs`. */
export async function untilSettled<Seen>(
  look: () => Promise<Seen> | Seen,
  settled: (seen: Seen) => boolean,
  limitMs = 90_000,
): Promise<Seen> {
  let seen = await look()
  for (const end = performance.now() + limitMs; !settled(seen); seen = await look()) {
    if (performance.now() > end) throw new Error(`not within ${limitMs / 1000} s: ${JSON.stringify(seen)}`)
    await setTimeout(250)
  }
  return seen
}
