/**
 * The benchmark itself: that it moves what it says, verifies it, and leaves nothing. What it measures is not asserted.
 */
import { spawnSync } from 'node:child_process'
import { readdirSync, readFileSync, readlinkSync, symlinkSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import { suite } from 'uvu'
import * as assert from 'uvu/assert'
import type { Lane } from '../../lib/bench/interleaved-runs.ts'
import { cannotSimulate, linkKinds } from '../../lib/bench/simulated.ts'
import { real } from '../support/criu.ts'
import { startCache } from '../support/daemons.ts'
import { eventually, root, run, start, statusIs, temporary } from '../support/run.ts'

const test = suite('scripts/bench')
const program = ['--import', 'tsx', join(root, 'scripts', 'bench.ts')]
const bench = (...args: string[]) => run(process.execPath, [...program, ...args], { cwd: root })

if (typeof real === 'string') console.log(`skipped: bench moves nothing: ${real}`)
else {
  const criu = real.path
  test('every way moves a tree and its memory; results as JSON and as a chart', async () => {
    const { path, remove } = temporary()
    const chart = join(path, 'chart.svg')
    const ran = await bench(
      '--runs',
      '1',
      '--size',
      '8M',
      '--memory',
      'text',
      '--tree',
      '20',
      '--json',
      '--plot',
      chart,
      '--place',
      path,
      '--criu',
      criu,
    )
    assert.is(ran.code, 0, ran.stderr)
    const { lanes, kind, children } = JSON.parse(ran.stdout.toString()) as Record<string, unknown> & { lanes: Lane[] }
    assert.equal([kind, children], ['text', 20])
    const names = lanes.map(({ name }) => name)
    for (const name of ['tmpfs', 'page-server', 'ferry', 'ferry-buffers', 'ferry-early'])
      assert.ok(names.includes(name), name)
    for (const { name, bytes, results } of lanes) {
      assert.equal([bytes, results.length], [8 * 2 ** 20, 1])
      const { downtime, frozen, total, proxyCpu, cacheCpu, cacheAheadCpu, images, cacheStart } =
        results[0] as Lane['results'][number]
      assert.ok(downtime > 0 && total > 0 && frozen > 0, name)
      const ours = name.startsWith('ferry')
      for (const figure of [proxyCpu, cacheCpu, cacheAheadCpu, images, cacheStart])
        assert.is(figure !== undefined, ours)
      if (!ours) continue
      assert.ok((images ?? 0) > 100, `${name}: ${images} images`)
      assert.ok((cacheAheadCpu ?? 0) > 0 && (cacheAheadCpu ?? 0) < (cacheCpu ?? 0), `${name}: ${cacheAheadCpu}`)
    }
    assert.match(readFileSync(chart, 'utf8'), /^<svg [\s\S]*ferry, 8.00 MiB[\s\S]*<\/svg>\n$/)
    assert.equal(readdirSync(path), ['chart.svg'])
    remove()
  })

  test('a node heap is moved; what is said below the table', async () => {
    const { path, remove } = temporary()
    const more = ['--memory', 'heap', '--only', 'ferry-early', '--place', path, '--criu', criu, '-q']
    const ran = await bench('--runs', '1', '--size', '64M', ...more)
    assert.is(ran.code, 0, ran.stderr)
    const said = ran.stdout.toString()
    assert.match(said, /^ferry-early 64.0 MiB: cache and process together held \d\.\d\d x the process at most$/m)
    assert.match(
      said,
      /^ferry-early 64.0 MiB: sockets there \d\.\d\d s \(proxy\) and \d\.\d\d s \(cache\) after the start$/m,
    )
    assert.equal(readdirSync(path), [])
    remove()
  })

  test('a signal in the middle, and a criu that fails: nothing is left', async () => {
    const { path, remove } = temporary()
    const left = (): string[] => readdirSync(path)
    const place = ['--place', path, '--size', '64M']
    for (const only of ['ferry', 'page-server']) {
      const running = start(
        process.execPath,
        [...program, '--runs', '1000', '--only', only, '--criu', criu, ...place],
        { cwd: root },
      )
      await running.says(new RegExp(`${only} 64.0 MiB: stood still`))
      await eventually(() => left().length > 0 || undefined, 'the next run')
      assert.is((await running.stop('SIGTERM')).code, 143)
      assert.equal(left(), [])
      assert.is(spawnSync('pgrep', ['-f', path]).status, 1, 'a process of the run is left')
      const failed = await bench('--runs', '1', '--only', only, '--criu', '/bin/false', ...place)
      assert.is(failed.code, 5, failed.stderr)
      assert.equal(left(), [])
      assert.is(spawnSync('pgrep', ['-f', path]).status, 1, 'a process of the run is left')
    }
    remove()
  })
}

test('a transfer to a cache, which keeps nothing of it', async () => {
  const { path, remove } = temporary()
  const { cache, port } = await startCache(path, [])
  const to = ['--link', `127.0.0.1:${port}`, '--connections', '2']
  const ran = await bench(...to, '--size', '8M', '--size', '16M', '--runs', '2', '--quiet')
  assert.is(ran.code, 0, ran.stderr)
  assert.match(
    ran.stdout.toString(),
    /^8.00 MiB of random memory, median of 2: [^\n]*\/s\)\n16.0 MiB of [^\n]*\/s\)\n$/,
  )
  assert.is(ran.stderr, '')
  await statusIs(cache, /status: snapshots: 0, chains: 0, memory: 0 B/)
  await cache.stop()
  remove()
})

const impossible = process.env.FERRY_NO_SPLICE === '1' ? 'the other pass does it' : cannotSimulate()
if (impossible !== undefined) console.log(`skipped: simulated links: ${impossible}`)
else {
  test('simulated links, with one connection and with four; then a signal in the middle: nothing is left', async () => {
    const { path, remove } = temporary()
    const long = ['--long-links', '--place', path, '--runs', '1', '--size']
    const here = readlinkSync('/proc/self/ns/net')
    const ran = await bench(...long, '1M')
    assert.is(ran.code, 0, ran.stderr)
    for (const { name } of linkKinds) {
      for (const connections of [1, 4]) {
        assert.match(ran.stdout.toString(), new RegExp(`^${name} +1.00 MiB +${connections} +\\d`, 'm'))
      }
    }
    // Each was carried by packets, there and back.
    assert.is([...ran.stderr.matchAll(/: [1-9]\d{2,} packets carried/g)].length, linkKinds.length, ran.stderr)
    assert.equal(readdirSync(path), [])
    const running = start(process.execPath, [...program, ...long, '512M'], { cwd: root })
    await running.says(/no limit, no delay, 1 connections/)
    assert.is((await running.stop('SIGTERM')).code, 143)
    assert.equal(readdirSync(path), [])
    assert.is(spawnSync('pgrep', ['-f', path]).status, 1, 'a process of the run is left')
    const children = spawnSync('pgrep', ['-f', join(root, 'lib', 'bench', 'wire-delay')], { encoding: 'utf8' })
    assert.is(children.stdout, '', 'the cable is left')
    assert.is(readlinkSync('/proc/self/ns/net'), here)
    remove()
  })
}

test('misuse: one line, a hint or a reason, exit 2', async () => {
  for (const [args, message] of [
    [['--size', '1.3M'], /--size wants whole MiB/],
    [['--runs', '0'], /--runs wants a number/],
    [['--only', 'teleport'], /--only wants tmpfs or/],
    [['--memory', 'full'], /--memory wants random or/],
    [['--tree', '2', '--memory', 'heap'], /--tree and --memory heap do not go together/],
    [['--link', '127.0.0.1:1', '--json'], /--link and --only, --plot or --json do not go together/],
    [['--link', '127.0.0.1:1', '--long-links'], /--link and --long-links do not go together/],
    [['--link', '127.0.0.1:1', '--connections', '17'], /--connections wants a number from 1 to 16/],
    [['--link', '192.0.2.1:1'], /plain TCP to or from 192.0.2.1/],
  ] as [string[], RegExp][]) {
    const ran = await bench(...args)
    assert.is(ran.code, 2, args.join(' '))
    assert.match(ran.stderr, message)
    assert.match(ran.stderr, /^bench: error: [^\n]+\n(bench: hint: [^\n]+\n)?$/)
  }
})

test('a chart goes into a file of our own, and never through a link', async () => {
  const { path, remove } = temporary()
  writeFileSync(join(path, 'precious'), 'x')
  symlinkSync('precious', join(path, 'chart.svg'))
  for (const [file, reason] of [
    [join(path, 'chart.svg'), 'is a link'],
    ['/dev/null', 'is no regular file'],
  ] as const) {
    const ran = await bench('--plot', file, '--place', path, '--criu', '/bin/true')
    assert.is(ran.code, 1, ran.stderr)
    assert.ok(ran.stderr.startsWith(`bench: error: ${file} ${reason}\n`), ran.stderr)
  }
  assert.is(readFileSync(join(path, 'precious'), 'utf8'), 'x')
  remove()
})

test.run()
