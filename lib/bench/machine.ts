/** What is known of processes, and of this machine, for figures that others can judge. */
import { spawnSync } from 'node:child_process'
import { readdirSync, readFileSync } from 'node:fs'
import { cpus, loadavg, release, totalmem } from 'node:os'
import { Fault } from '../fault.ts'
import { PAGE_BYTES } from '../format/pagemap.ts'
import { formatSize } from '../size.ts'

/** Processor time of a process and its threads, in seconds. */
export function cpuSeconds(pid: number | undefined): number {
  const folder = `/proc/${pid}/task`
  let nanoseconds = 0
  for (const thread of readdirSync(folder)) {
    const [ran = '0'] = readFileSync(`${folder}/${thread}/schedstat`, 'utf8').split(' ')
    nanoseconds += Number(ran)
  }
  return nanoseconds / 1e9
}

/** Most memory that a process has held, in bytes. */
export function peakBytes(pid: number | undefined): number {
  const [, kib = '0'] = /^VmHWM:\s+(\d+)/m.exec(readFileSync(`/proc/${pid}/status`, 'utf8')) ?? []
  return Number(kib) * 1024
}

/** Memory that these processes hold at this moment, in bytes; those that are gone hold none. */
export function residentBytes(pids: readonly number[]): number {
  return pids.reduce((sum, pid) => sum + residentPages(pid) * PAGE_BYTES, 0)
}

function residentPages(pid: number): number {
  try {
    return Number(readFileSync(`/proc/${pid}/statm`, 'utf8').split(' ')[1])
  } catch {
    return 0
  }
}

/** Whether there is such a program. */
export function has(program: string): boolean {
  return spawnSync('sh', ['-c', `command -v ${program}`], { stdio: 'ignore' }).status === 0
}

export type Machine = ReturnType<typeof describeMachine>

/** Throws `CRIU`. */
export function describeMachine(criu: string) {
  const version = /Version: (\S+)/.exec(spawnSync(criu, ['--version'], { encoding: 'utf8' }).stdout)?.[1]
  if (version === undefined) throw new Fault('CRIU', `${criu} does not say its version`, { hint: 'is it a criu?' })
  return {
    date: new Date().toISOString().slice(0, 10),
    processor: cpus()[0]?.model ?? 'unknown',
    cores: cpus().length,
    memory: formatSize(totalmem()),
    kernel: release(),
    criu: version,
    node: process.version,
    /** Average of the last minute when it began. */
    load: loadavg()[0] ?? 0,
  }
}
