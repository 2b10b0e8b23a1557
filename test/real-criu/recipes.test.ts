/** The recipes of README.md and docs/recipes.md, word for word, and the ways of failing that only the real CRIU has. */
import { existsSync, mkdirSync, readdirSync, readFileSync, statSync, symlinkSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import { suite } from 'uvu'
import * as assert from 'uvu/assert'
import { commandLine } from '../../lib/kernel/process.ts'
import { real } from '../support/criu.ts'
import { daemons } from '../support/daemons.ts'
import { type Host, startHost } from '../support/host.ts'
import { patternLoad, type Started } from '../support/loads.ts'
import { eventually, type RunOptions, root, run, shell, start, temporary } from '../support/run.ts'
import { startSshd } from '../support/sshd.ts'

const test = suite('real-criu/recipes')
const load = patternLoad(16)

interface Stage {
  folder: string
  load: Started
  /** Where it goes. */
  host: Host
  /** Throws unless the load goes on there. */
  arrived(): Promise<void>
  /** The environment of a recipe: `$PID`, and `criu` in the PATH. */
  env: Record<string, string>
}

async function staged(body: (stage: Stage) => Promise<void>): Promise<void> {
  const { path, remove } = temporary()
  const host = await startHost()
  const started = await load.start(path)
  const arrived = async (): Promise<void> => {
    await started.gone
    await started.verify(host.outerPid(started.pid))
  }
  try {
    await body({ folder: path, load: started, host, arrived, env: { PID: String(started.pid) } })
  } finally {
    started.kill()
    await host.stop()
    remove()
  }
}

/** After a restore on this host: waits until the pid can be taken again. */
async function free(pid: number): Promise<void> {
  await eventually(() => !existsSync(`/proc/${pid}`) || undefined, `the end of ${pid}`)
}

/** Runs a line with bash. */
async function recipe(line: string, options: RunOptions): Promise<void> {
  const ran = await shell(line, options)
  assert.is(ran.code, 0, `${line}\n${ran.stderr}`)
}

/** Recipes as lines of shell. */
const throughSsh = [
  "dump-to-stdout -t $PID --via 'ssh host criu-restore-from-socket --from -'",
  'dump-to-stdout -t $PID | ssh host criu-restore-from-socket --from -',
]
const intoFile = 'dump-to-stdout -t $PID | zstd -T0 > app.img.zst'
const fromFile = 'zstd -dc app.img.zst | restore-from-socket --from -'
const copy = 'dump-to-stdout -t $PID -- -R > app.img'
const plain = [
  'host$ cache --port 9997 -D /run/ferry &',
  'src$ proxy --port 9997 -D /run/ferry &',
  'src$ criu dump --stream -t $PID -D /run/ferry',
  'host$ criu restore --stream -d -D /run/ferry',
]
const handOver = [
  'host$ cache --port 9997 -D /run/ferry --restore &',
  'src$ proxy --port 9997 -D /run/ferry --until running &',
  'src$ criu dump --stream -t $PID -D /run/ferry --action-script /run/ferry/post-dump',
]

test('the recipes stand in the documents, word for word', () => {
  const blocks = (path: string): string[] => readFileSync(join(root, path), 'utf8').split('\n\n')
  const stands = (path: string, lines: string[]): void =>
    assert.ok(blocks(path).includes(lines.map((line) => `    ${line}`).join('\n')), `${path}: ${lines.join('\n')}`)
  for (const path of ['README.md', 'docs/recipes.md']) {
    for (const line of throughSsh) stands(path, [line])
    stands(path, handOver)
  }
  stands('docs/recipes.md', [intoFile, fromFile])
  stands('docs/recipes.md', plain)
  stands('docs/recipes.md', [copy])
})

function recipes(criu: string): void {
  for (const line of throughSsh) {
    test(line, () =>
      staged(async ({ host, arrived, env, folder }) => {
        const sshd = await startSshd(host)
        if (typeof sshd === 'string') return void console.log(`skipped: ssh: ${sshd}`)
        try {
          writeFileSync(join(folder, 'ssh'), `#!/bin/sh\nexec /usr/bin/ssh -F ${sshd.config} "$@"\n`, { mode: 0o755 })
          await recipe(`PATH=${folder}:$PATH; ${line}`, { env })
          await arrived()
        } finally {
          await sshd.stop()
        }
      }),
    )
  }

  test(`${intoFile} ; ${fromFile}`, () =>
    staged(async ({ load, env, folder }) => {
      await recipe(intoFile, { env, cwd: folder })
      await load.gone
      await recipe(fromFile, { env, cwd: folder })
      await load.verify()
    }))

  for (const [name, lines] of Object.entries({ 'criu restore --stream': plain, 'cache --restore': handOver }))
    daemonRecipe(name, lines)

  function daemonRecipe(name: string, recipeLines: string[]): void {
    test(`cache, proxy, criu dump --stream, ${name}`, () =>
      staged(async ({ host, arrived, env, folder }) => {
        if (existsSync('/run/ferry')) return void console.log('skipped: /run/ferry is in use')
        const bin = join(folder, 'bin')
        const command = (name: string, line: string): void =>
          writeFileSync(join(bin, name), `#!/bin/sh\n${line} "$@"\n`, { mode: 0o755 })
        mkdirSync(bin)
        symlinkSync(criu, join(bin, 'criu'))
        // `host$` is the second host; both have the same loopback, as through the tunnel.
        const path = `PATH=${bin}:${join(root, 'scripts', 'bin')}:$PATH`
        command('host$', `exec ${host.enter.join(' ')} env ${path}`)
        command('src$', `exec env ${path}`)
        // This host is the one where the process runs. The proxy must be there before the dump, and the restore of the
        // cache must have begun before it is stopped.
        const ready = 'until [ -S /run/ferry/streamer-capture.sock ]; do sleep 0.1; done'
        const lines = [
          `PATH=${bin}:$PATH`,
          `trap 'kill $(jobs -p); wait; rm -f /run/ferry/stats-*; rmdir /run/ferry' EXIT`,
          ...recipeLines.flatMap((line) => (line.startsWith('src$ criu') ? [ready, `${line} || exit`] : [line])),
          'sleep 1',
        ]
        await recipe(lines.join('\n'), { env, cwd: folder })
        await arrived()
        assert.not(existsSync('/run/ferry'), 'nothing is left')
      }))
  }

  test('a restore that is started before the dump', () =>
    staged(async ({ load, host, arrived, folder }) => {
      const both = await daemons()
      const [enter = '', ...options] = host.enter
      const restoring = start(enter, [...options, criu, 'restore', '--stream', '-d', '-D', both.target])
      await both.cache.says(/waiting for/)
      const dumped = await run(criu, ['dump', '--stream', '-t', String(load.pid), '-D', both.source], { cwd: folder })
      assert.is(dumped.code, 0, dumped.stderr)
      const restored = await restoring.ended
      assert.is(restored.code, 0, restored.stderr)
      await arrived()
      await both.stop()
    }))

  test('restore-from-socket takes a copy from the cache, again and again', () =>
    staged(async ({ load, folder }) => {
      const both = await daemons()
      const dumped = await run(criu, ['dump', '--stream', '-R', '-t', String(load.pid), '-D', both.source])
      assert.is(dumped.code, 0, dumped.stderr)
      await both.proxy.says(/the source runs on, criu left it running/)
      load.kill()
      await load.gone
      for (let time = 0; time < 2; time++) {
        const ran = await run('restore-from-socket', ['--from', `127.0.0.1:${both.port}`, '-D', join(folder, 'held')])
        assert.is(ran.code, 0, ran.stderr)
        await load.whole()
        load.kill()
        await free(load.pid)
      }
      await both.stop()
    }))

  test('restore-from-socket takes what was handed over once, and is told so the second time', () =>
    staged(async ({ load, folder }) => {
      const both = await daemons({ proxy: ['--snapshot', 'once'] })
      const dumped = await run(criu, ['dump', '--stream', '-t', String(load.pid), '-D', both.source])
      assert.is(dumped.code, 0, dumped.stderr)
      await load.gone
      const from = ['--from', `127.0.0.1:${both.port}`, '--snapshot', 'once', '-D', join(folder, 'held')]
      const first = await run('restore-from-socket', from)
      assert.is(first.code, 0, first.stderr)
      await load.verify()
      const second = await run('restore-from-socket', from)
      assert.is(second.code, 1, second.stderr)
      assert.match(second.stderr, /refused: snapshot once was handed over, and runs/)
      await both.stop()
    }))

  test('--to-dir is what criu restore -D takes, --from-dir is what criu dump -D leaves', () =>
    staged(async ({ load, env, folder }) => {
      await recipe('dump-to-stdout -t $PID | restore-from-socket --from - --to-dir images', { env, cwd: folder })
      await load.gone
      const restored = await run(criu, ['restore', '-d', '-D', join(folder, 'images')])
      assert.is(restored.code, 0, restored.stderr)
      await load.verify()
      mkdirSync(join(folder, 'plain'))
      const dumped = await run(criu, ['dump', '-t', String(load.pid), '-D', join(folder, 'plain')])
      assert.is(dumped.code, 0, dumped.stderr)
      await free(load.pid)
      await recipe('dump-to-stdout --from-dir plain | restore-from-socket --from -', { env, cwd: folder })
      await load.verify()
    }))

  test('dump-to-stdout -- -R: the process runs on, and its copy starts where it was copied', () =>
    staged(async ({ load, env, folder, host }) => {
      const dumped = await shell(copy, { env, cwd: folder })
      assert.is(dumped.code, 0, dumped.stderr)
      await load.runsOn()
      load.kill()
      await load.gone
      const restored = await shell(`${host.enter.join(' ')} restore-from-socket < app.img`, { cwd: folder })
      assert.is(restored.code, 0, restored.stderr)
      await load.whole(host.outerPid(load.pid))
    }))

  test('--listen on both sides, with a criu that somebody else runs', () =>
    staged(async ({ load, folder }) => {
      const work = join(folder, 'work')
      const line = `dump-to-stdout -v --listen -D ${work} | restore-from-socket -v --listen -D ${work}`
      const pipeline = start('bash', ['-o', 'pipefail', '-c', line])
      await pipeline.says(/streamer-capture/)
      assert.is((await run(criu, ['dump', '--stream', '-t', String(load.pid), '-D', work])).code, 0)
      await pipeline.says(/listening on .*streamer-serve/)
      assert.is((await run(criu, ['restore', '--stream', '-d', '-D', work])).code, 0)
      assert.is((await pipeline.ended).code, 0)
      await load.verify()
    }))

  test('a restore that CRIU refuses does not consume the snapshot', () =>
    staged(async ({ load }) => {
      const both = await daemons()
      const dumped = await run(criu, ['dump', '--stream', '-R', '-t', String(load.pid), '-D', both.source])
      assert.is(dumped.code, 0, dumped.stderr)
      const taken = await run(criu, ['restore', '--stream', '-d', '-D', both.target])
      assert.not(taken.code === 0, 'the pid is taken')
      const ours = await run('restore-from-socket', ['--from', `127.0.0.1:${both.port}`])
      assert.is(ours.code, 5)
      assert.match(ours.stderr, /^restore-from-socket: error: criu restore failed \(exit code 1\): .*\n/)
      load.kill()
      await load.gone
      const restored = await run(criu, ['restore', '--stream', '-d', '-D', both.target])
      assert.is(restored.code, 0, restored.stderr)
      await both.stop()
    }))

  test('a dump that CRIU refuses: exit 5 with its reason, the receiver restores nothing, the process runs on', () =>
    staged(async ({ load, env }) => {
      const line = 'dump-to-stdout -t $PID -- --bogus | restore-from-socket --from -; echo ${PIPESTATUS[@]}'
      const ran = await shell(line, { env })
      assert.match(ran.stdout.toString(), /^5 4\n$/)
      assert.match(ran.stderr, /dump-to-stdout: error: criu dump (failed|ended)/)
      await load.runsOn()
    }))

  test('a reader that leaves in the middle: the process runs on', () =>
    staged(async ({ load, env }) => {
      const ran = await shell('dump-to-stdout -t $PID | head -c 2000000 > /dev/null; echo ${PIPESTATUS[0]}', { env })
      assert.is(ran.stdout.toString(), '3\n', ran.stderr)
      await load.runsOn()
    }))

  for (const signal of ['SIGTERM', 'SIGKILL'] as const) {
    test(`dump-to-stdout gets ${signal} in the middle: the process runs on`, () =>
      staged(async ({ load, folder }) => {
        // Nobody reads for a while, so that the dump cannot finish.
        const env = { TMPDIR: folder }
        const pipeline = start(
          'bash',
          ['-c', `dump-to-stdout -t ${load.pid} | sleep 100; echo code \${PIPESTATUS[0]} >&2`],
          { env },
        )
        await eventually(() => frozen(load.pid) || undefined, 'the freeze')
        const dumping = readFileSync(`/proc/${pipeline.child.pid}/task/${pipeline.child.pid}/children`, 'utf8')
        const [dump, sleep] = dumping.split(' ').map(Number)
        process.kill(dump as number, signal)
        await eventually(() => !existsSync(`/proc/${dump}`) || zombie(dump as number) || undefined, 'its end')
        process.kill(sleep as number)
        await pipeline.says(signal === 'SIGTERM' ? /code 143/ : /code 137/)
        await load.runsOn()
        assert.not(frozen(load.pid))
        const left = (): string[] => readdirSync(folder).filter((name) => name.startsWith('criu-ferry.'))
        assert.is(left().length > 0, signal === 'SIGKILL')
        await run('mkdir', [join(folder, 'criu-ferry.images')])
        // The next one clears away what a killed one left, and nothing else.
        await shell(`dump-to-stdout -t ${load.pid} | true`, { env })
        assert.equal(left(), ['criu-ferry.images'])
      }))
  }

  test('a signal after CRIU was let go comes too late: the dump is finished', () =>
    staged(async ({ load, host, arrived, folder }) => {
      const slow = join(folder, 'slow')
      writeFileSync(
        slow,
        `#!/bin/sh\n[ "$CRTOOLS_SCRIPT_ACTION" != post-dump ] || { touch ${folder}/at; sleep 3; }\n`,
        {
          mode: 0o755,
        },
      )
      const dumping = start('dump-to-stdout', ['-t', String(load.pid), '--', '--action-script', slow], { cwd: folder })
      await eventually(() => existsSync(join(folder, 'at')) || undefined, 'post-dump')
      // By now stdout has everything.
      await new Promise((resolve) => setTimeout(resolve, 1000))
      const dumped = await dumping.stop()
      assert.is(dumped.code, 0, dumped.stderr)
      const [enter = '', ...options] = host.enter
      const restored = await run(enter, [...options, 'restore-from-socket'], { input: dumped.stdout })
      assert.is(restored.code, 0, restored.stderr)
      await arrived()
    }))

  test('a signal during a restore leaves no half of a process', () =>
    staged(async ({ load, folder, env }) => {
      await recipe('dump-to-stdout -t $PID > app.img', { env, cwd: folder })
      await load.gone
      const slow = join(folder, 'slow')
      writeFileSync(
        slow,
        `#!/bin/sh\n[ "$CRTOOLS_SCRIPT_ACTION" != pre-restore ] || { touch ${folder}/at; sleep 1; }\n`,
        {
          mode: 0o755,
        },
      )
      const line = `exec restore-from-socket -- --action-script ${slow} < app.img`
      const restoring = start('bash', ['-c', line], { cwd: folder })
      await eventually(() => existsSync(join(folder, 'at')) || undefined, 'pre-restore')
      assert.is((await restoring.stop()).code, 143)
      await free(load.pid)
    }))

  test('a criu that does not restore is no success, and a wrong work directory is found before the stream', () =>
    staged(async ({ load, env, folder }) => {
      await recipe('dump-to-stdout -t $PID -- -R -W . > app.img', { env, cwd: folder })
      const ran = await shell('restore-from-socket -- -V < app.img', { cwd: folder })
      assert.is(ran.code, 5)
      assert.match(ran.stderr, /criu restore ended without taking the images/)
      const line = 'dump-to-stdout -t $PID | restore-from-socket -D /nonexistent/x; echo ${PIPESTATUS[@]}'
      assert.is((await shell(line, { env })).stdout.toString(), '3 1\n')
      await load.runsOn()
    }))

  test('a disk that is full at the very end: the process runs on', () =>
    staged(async ({ load, env, folder }) => {
      await recipe('dump-to-stdout -t $PID -- -R > whole.img', { env, cwd: folder })
      mkdirSync(join(folder, 'disk'))
      // Room for everything but the last page, in which the end frame is.
      const pages = Math.floor((statSync(join(folder, 'whole.img')).size - 1) / 4096)
      const line = `mount -t tmpfs -o size=${pages * 4096} none disk && dump-to-stdout -t $PID > disk/app.img`
      const ran = await shell(`unshare --mount bash -c '${line}'`, { env, cwd: folder })
      assert.is(ran.code, 1)
      assert.match(ran.stderr, /ENOSPC/)
      await load.runsOn()
    }))

  test('criu killed in the middle of a dump: nothing is sealed, the process runs on', () =>
    staged(async ({ load, folder }) => {
      const work = join(folder, 'work')
      // The reader is stopped, so that the dump cannot finish before it is killed.
      const line =
        `dump-to-stdout -v --listen -D ${work} | (sleep 1.5; restore-from-socket --to-dir ` +
        `${folder}/out); echo codes \${PIPESTATUS[@]} >&2`
      const pipeline = start('bash', ['-c', line])
      await pipeline.says(/listening/)
      const dumping = start(criu, ['dump', '--stream', '-t', String(load.pid), '-D', work])
      await eventually(() => (existsSync(`/proc/${load.pid}`) && frozen(load.pid)) || undefined, 'the freeze')
      await new Promise((resolve) => setTimeout(resolve, 200))
      await dumping.stop('SIGKILL')
      await pipeline.says(/codes 4 4/)
      assert.not(existsSync(join(folder, 'out')))
      await load.runsOn()
    }))
}

function zombie(pid: number): boolean {
  return /^State:\s+Z/m.test(readFileSync(`/proc/${pid}/status`, 'utf8'))
}

/** While criu dump works on it. */
function frozen(pid: number): boolean {
  return /^TracerPid:\s+[1-9]/m.test(readFileSync(`/proc/${pid}/status`, 'utf8'))
}

if (typeof real === 'string') {
  console.log(`skipped: ${real}`)
  test('the demo shows the recorded images instead', async () => {
    const ran = await run(process.execPath, ['--import', 'tsx', join(root, 'scripts', 'demo.ts')])
    assert.is(ran.code, 0, ran.stderr)
    assert.match(ran.stdout.toString(), /all images arrived, byte for byte/)
  })
} else {
  recipes(real.path)
  test(`the demo, with CRIU ${real.version}`, async () => {
    const ran = await run(process.execPath, ['--import', 'tsx', join(root, 'scripts', 'demo.ts')])
    assert.is(ran.code, 0, ran.stderr)
    const said = ran.stdout.toString()
    assert.match(said, /process (\d+) is gone; one copy lives: process \1 of the other host/)
    assert.match(said, /it counts on, and left nothing out: \d+ ok; its memory: all 128 MiB ok\nfrozen for/)
  })
  test('the demo that is stopped in the middle leaves nothing', async () => {
    const { path, remove } = temporary()
    const demo = start(process.execPath, ['--import', 'tsx', join(root, 'scripts', 'demo.ts')], {
      env: { TMPDIR: path },
    })
    await new Promise<void>((resolve) => {
      demo.child.stdout?.on('data', (text: Buffer) => text.includes('$ criu dump') && resolve())
    })
    const ran = await demo.stop()
    assert.is(ran.code, 1)
    assert.match(ran.stdout.toString(), /demo: error: stopped by SIGTERM/)
    assert.equal(
      readdirSync(path).filter((name) => name.startsWith('ferry-')),
      [],
    )
    const counting = readdirSync('/proc').filter((pid) =>
      commandLine(Number(pid)).some((word) => word.startsWith(path)),
    )
    assert.equal(counting, [])
    remove()
  })
}

test.run()
