/** Scenarios of rounds to a cache: by pre-copy, and by criu processes that somebody else starts, through the proxy's page server port. */
import { mkdirSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import { formatSize } from '../../lib/size.ts'
import { dirtyingLoad, type Load } from '../support/loads.ts'
import { type Running, start } from '../support/run.ts'
import { type Stage, staged } from '../support/stage.ts'
import { expect, fullDump, type Scenario } from './scenario.ts'

const PERCENT = 5
/** The time goes into emulating: one release moves much, the others little. */
const sizeFor = (criu: string): number => (criu.includes('trixie') ? 256 : 64)
const small = dirtyingLoad(24, 25)
const shared = dirtyingLoad(16, 10, 16)

/** Bytes of each round that is told of. */
function rounds(stderr: string): number[] {
  return [...stderr.matchAll(/round \d+: (\d+) pages/g)].map(([, pages]) => Number(pages) * 4096)
}

function preCopy({ folder, load }: Stage, criu: string, port: string, ...more: string[]): Running {
  const place = ['-D', join(folder, 'owed'), '--criu', criu, '--floor', '0']
  return start('pre-copy', ['-v', '-t', String(load.pid), '--port', port, ...place, ...more], { cwd: folder })
}

async function ended(running: Running, ...others: Running[]): Promise<string> {
  const { code, stderr } = await running.ended
  expect(code === 0, stderr + others.map((other) => other.stderr()).join(''))
  return stderr
}

const command: Scenario = {
  releases: ['trixie', 'experimental'],
  name: `pre-copy: three rounds of a process of which ${PERCENT} % change, and the hand-over`,
  async play(criu) {
    let figures = ''
    await staged(criu, dirtyingLoad(sizeFor(criu), PERCENT), async (stage) => {
      const { cache, port } = await stage.cache('--restore', '--criu', criu)
      const whole = await fullDump(criu, stage.load.pid, stage.folder)
      const stderr = await ended(preCopy(stage, criu, port, '--max-rounds', '3'), cache)
      await cache.says(/restored in/)
      await stage.arrived()
      const sizes = rounds(stderr)
      const [, sent = ''] = /sent and sealed by the cache: \d+ images, ([^(]*) in/.exec(stderr) ?? []
      const [, frozen = ''] = /frozen for ([\d.]+) s/.exec(stderr) ?? []
      expect(sizes.length >= 2, `${sizes.length} rounds`)
      expect((sizes.at(-1) ?? 0) <= (sizes[0] ?? 0) / 10, `rounds of ${sizes.join(', ')} bytes`)
      figures = `${sizes.map(formatSize).join(', ')}, then ${sent}; frozen for ${frozen} s, a whole dump to tmpfs for ${(whole.frozen / 1000).toFixed(3)} s`
    })
    return figures
  },
}

/** Two trees at the same time, one of them with shared memory, to one cache. */
const two: Scenario = {
  name: 'pre-copy: two trees at once to one cache, one with shared memory',
  releases: ['sid'],
  async play(criu) {
    await staged(criu, small, async (first) => {
      await staged(criu, shared, async (second) => {
        const { cache, port } = await first.cache('--restore', '--criu', criu)
        const both = [preCopy(first, criu, port), preCopy(second, criu, port)]
        await Promise.all(both.map((running) => ended(running, cache)))
        await cache.says(/(restored in[\s\S]*){2}/)
        await first.arrived()
        await second.load.gone
        await second.load.verify(first.host.outerPid(second.load.pid))
      })
    })
    return ''
  },
}

/** A criu of somebody else at the proxy's port. */
function stock({ folder, load, source }: Stage, criu: string, port: string) {
  let step = 0
  return (action: 'pre-dump' | 'dump', parent: boolean, ...more: string[]): Running => {
    step++
    mkdirSync(join(folder, String(step)))
    return start(
      criu,
      [
        ...[action, '-t', String(load.pid), '-D', String(step), '--track-mem'],
        ...['--page-server', '--address', '127.0.0.1', '--port', port],
        ...(parent ? ['--prev-images-dir', `../${step - 1}`] : []),
        ...(action === 'dump' ? ['--action-script', join(source, 'post-dump')] : []),
        ...more,
      ],
      { cwd: folder },
    )
  }
}

/** What the proxy sent for the last dump, in MiB of images. */
function lastSent(proxy: Running): number {
  const [, amount = '', unit = ''] =
    [...proxy.stderr().matchAll(/sealed by the cache: \d+ images, ([\d.]+) (\w+)/g)].at(-1) ?? []
  return unit === 'MiB' ? Number(amount) : Number(amount) / 1024
}

async function byPort(
  criu: string,
  load: Load,
  body: (stage: Stage, tools: Tools) => Promise<string>,
): Promise<string> {
  let figures = ''
  await staged(criu, load, async (stage) => {
    const { cache, port } = await stage.cache('--restore', '--criu', criu)
    const proxy = await stage.proxy(port, '--page-server-port', '0')
    const [, pages = ''] = await proxy.says(/listening on 127\.0\.0\.1:(\d+)/)
    figures = await body(stage, { cache, proxy, criu: stock(stage, criu, pages) })
  })
  return figures
}

interface Tools {
  cache: Running
  proxy: Running
  criu: ReturnType<typeof stock>
}

const port: Scenario = {
  name: 'two rounds and a dump by criu itself, through the port of the proxy',
  releases: ['experimental'],
  play: (criu) =>
    byPort(criu, small, async (stage, tools) => {
      await ended(tools.criu('pre-dump', false), tools.proxy, tools.cache)
      await ended(tools.criu('pre-dump', true), tools.proxy, tools.cache)
      await ended(tools.criu('dump', true), tools.proxy, tools.cache)
      await tools.cache.says(/restored in/)
      await stage.arrived()
      const sizes = rounds(tools.proxy.stderr())
      expect(sizes.length === 2 && lastSent(tools.proxy) < 16, tools.proxy.stderr())
      return `${sizes.map(formatSize).join(', ')}, then ${lastSent(tools.proxy)} MiB`
    }),
}

/** A dump of another kind clears the kernel's marks: a chain that went on would miss what was written before it, and nobody would notice. */
const broken: Scenario = {
  name: 'a dump of another kind between a round and the dump: the chain is not gone on with',
  releases: ['trixie'],
  play: (criu) =>
    byPort(criu, small, async (stage, tools) => {
      await ended(tools.criu('pre-dump', false), tools.proxy, tools.cache)
      await ended(stage.dump('-R', '--track-mem', '-W', stage.folder), tools.proxy, tools.cache)
      await ended(tools.criu('dump', true), tools.proxy, tools.cache)
      await tools.cache.says(/restored in/)
      await stage.arrived()
      expect(lastSent(tools.proxy) > 24, tools.proxy.stderr())
      return `${lastSent(tools.proxy)} MiB`
    }),
}

/** The last dump fails when its pages are out, and the process runs on: the next dump must not build on it. */
const vetoed: Scenario = {
  name: 'a last dump that fails when all is there: the process runs on, and the next one begins anew',
  releases: ['sid'],
  play: (criu) =>
    byPort(criu, small, async (stage, tools) => {
      await ended(tools.criu('pre-dump', false), tools.proxy, tools.cache)
      const failing = join(stage.folder, 'failing')
      writeFileSync(failing, '#!/bin/sh\n[ "$CRTOOLS_SCRIPT_ACTION" != post-dump ]\n', { mode: 0o700 })
      const refused = await tools.criu('dump', true, '--action-script', failing).ended
      expect(refused.code !== 0, 'it was not refused')
      await tools.proxy.says(/the source runs on, criu left it running/)
      await stage.load.runsOn()
      await ended(tools.criu('dump', true), tools.proxy, tools.cache)
      await tools.cache.says(/restored in/)
      await stage.arrived()
      expect(lastSent(tools.proxy) > 24, tools.proxy.stderr())
      return `${lastSent(tools.proxy)} MiB`
    }),
}

export const preCopying: Scenario[] = [command, two, port, broken, vetoed]
