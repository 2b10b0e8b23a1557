/** Another user of the host: what he makes, or may change, where root's commands work. He is user 65534 here. */
import { spawnSync } from 'node:child_process'
import {
  chmodSync,
  chownSync,
  existsSync,
  mkdirSync,
  readdirSync,
  readFileSync,
  symlinkSync,
  writeFileSync,
} from 'node:fs'
import { join } from 'node:path'
import { suite } from 'uvu'
import * as assert from 'uvu/assert'
import { userName } from '../../lib/kernel/trusted-path.ts'
import { within } from '../expect.ts'
import { startCache } from '../support/daemons.ts'
import { eventually, fixtures, type Ran, root, run, shell, start, temporary } from '../support/run.ts'
import { command } from '../support/stage.ts'

interface Context {
  dir: string
  remove: () => void
}

const test = suite<Context>('scripts/other-users')
const HE = 65534
const him = userName(HE)
const asHim = ['--reuid', `${HE}`, '--regid', `${HE}`, '--clear-groups']
const images = join(fixtures, 'images')

test.before.each((context) => {
  const { path, remove } = temporary()
  // He can look at it, and write nothing.
  chmodSync(path, 0o755)
  Object.assign(context, { dir: path, remove })
})
test.after.each(({ remove }) => remove())

/** Has him run a line of shell. */
function he(line: string, cwd: string): void {
  const { status, stderr } = spawnSync('setpriv', [...asHim, 'sh', '-c', line], { cwd, encoding: 'utf8' })
  assert.is(status, 0, stderr)
}

function made(path: string, mode: number, uid = 0): string {
  mkdirSync(path)
  chmodSync(path, mode)
  chownSync(path, uid, uid)
  return path
}

function refused(ran: Ran, code: number, message: string): void {
  assert.is(ran.code, code, ran.stderr)
  assert.ok(ran.stderr.includes(`: error: ${message}\n`), ran.stderr)
  assert.match(ran.stderr, /: hint: [^\n]+\n/)
}

/** Every command that works in a directory which the user names. */
const commandsIn = (directory: string): string[] => [
  `cache --port 0 -D ${directory}`,
  `cache -D ${directory} --ls`,
  `cache -D ${directory} --let-run web-1`,
  `proxy --port 9 -D ${directory}`,
  `dump-to-stdout --listen -D ${directory} | cat`,
  `dump-to-stdout -t $$ --via true -D ${directory}`,
  `dump-to-stdout --settle web-1 --via true -D ${directory}`,
  `pre-copy -t $$ --port 9 -D ${directory}`,
  `restore-from-socket --let-run web-1 -D ${directory}`,
  `dump-to-stdout --from-dir ${images} | restore-from-socket --listen -D ${directory}`,
  `dump-to-stdout --from-dir ${images} | restore-from-socket -D ${directory}`,
]

if (process.geteuid?.() !== 0) console.log('skipped: other users are played by root')
else {
  test('a work directory that he owns, may write to or has made a link to is refused by every command', async ({
    dir,
  }) => {
    made(join(dir, 'his'), 0o755, HE)
    made(join(dir, 'open'), 0o777)
    made(join(dir, 'victim'), 0o700)
    symlinkSync('../victim', made(join(dir, 'sticky'), 0o1777).concat('/ours'))
    he(`ln -s ${dir}/victim his-link`, join(dir, 'sticky'))
    const env = { FERRY_CRIU: '/bin/true' }
    for (const [name, reason] of [
      ['his', `${dir}/his belongs to ${him}`],
      ['his/below', `${dir}/his belongs to ${him}`],
      ['open', `${dir}/open can be written by everybody`],
      ['sticky', `${dir}/sticky can be written by everybody`],
      ['sticky/his-link', `${dir}/sticky/his-link belongs to ${him}`],
    ] as const) {
      const lines = name === 'his' ? commandsIn(join(dir, name)) : commandsIn(join(dir, name)).slice(0, 1)
      for (const line of lines) refused(await shell(line, { env }), 2, reason)
    }
    for (const name of ['his', 'open', 'victim']) assert.equal(readdirSync(join(dir, name)), [], name)
    const { cache } = await startCache(join(dir, 'sticky', 'ours'))
    await cache.stop()
    const below = await startCache(join(dir, 'sticky', 'new'))
    await below.cache.stop()
  })

  test('the directories for temporary files, for verdicts and for a benchmark are not his', async ({ dir }) => {
    const his = made(join(dir, 'his'), 0o755, HE)
    const env = { FERRY_CRIU: '/bin/true', TMPDIR: his }
    const stream = `dump-to-stdout --from-dir ${images}`
    refused(await shell(`${stream} | restore-from-socket`, { env }), 2, `${his} belongs to ${him}`)
    refused(await shell('dump-to-stdout -t $$ | cat', { env }), 2, `${his} belongs to ${him}`)
    assert.equal(
      readdirSync(his).filter((name) => name.startsWith('criu-ferry')),
      [],
    )
    const place = ['--place', his, '--only', 'tmpfs', '--criu', '/bin/true']
    const bench = [...process.execArgv, join(root, 'scripts', 'bench.ts'), ...place]
    refused(await run(process.execPath, bench, { cwd: root }), 2, `${his} belongs to ${him}`)
    const verdicts = `mount -t tmpfs none /run && mkdir /run/criu-ferry && chown ${HE} /run/criu-ferry`
    for (const line of ['dump-to-stdout -t $$ --via true', 'restore-from-socket --drop web-1']) {
      const ran = await run('unshare', ['--mount', 'sh', '-c', `${verdicts} && ${line}`], {
        env: { FERRY_CRIU: '/bin/true' },
      })
      refused(ran, 2, `/run/criu-ferry belongs to ${him}`)
    }
  })

  test('who may not reach the socket of a cache is told so, and not that no cache runs', async ({ dir }) => {
    if (spawnSync('setpriv', [...asHim, 'test', '-r', join(root, 'package.json')]).status !== 0) {
      console.log(`skipped: ${root} cannot be read by another user`)
      return
    }
    const target = join(dir, 'target')
    const { cache } = await startCache(target)
    for (const mode of [0o700, 0o755]) {
      chmodSync(target, mode)
      for (const [program, ...options] of [
        ['cache', '--ls'],
        ['cache', '--rm', 'web-1'],
        ['cache', '--pin', 'web-1'],
        ['cache', '--let-run', 'web-1'],
        ['cache', '--drop', 'web-1'],
        ['restore-from-socket', '--let-run', 'web-1'],
      ] as const) {
        const ran = await run('setpriv', [...asHim, command(program), '-D', target, ...options])
        const socket = program === 'cache' ? 'cache.sock' : 'web-1.sock'
        // A holder's socket that is not there cannot be told from one that may not be seen.
        if (program === 'cache' || mode === 0o700)
          refused(ran, 1, `you may not connect to ${target}/${socket} (EACCES)`)
      }
    }
    await cache.stop()
  })

  test('a log or a pidfile in a place of his is neither followed nor waited for', async ({ dir }) => {
    writeFileSync(join(dir, 'precious'), 'precious\n', { mode: 0o600 })
    for (const [folder, mode] of [
      ['open', 0o777],
      ['sticky', 0o1777],
    ] as const) {
      const place = made(join(dir, folder), mode)
      he(
        `ln -s ${dir}/precious link; ln -s ${dir}/made dangling; mkfifo -m 666 fifo; echo 1 > his; chmod 666 his`,
        place,
      )
      for (const [name, reason] of [
        ['link', 'is a link'],
        ['dangling', 'is a link'],
        ['fifo', 'is no regular file'],
        ['his', `belongs to ${him}`],
      ] as const) {
        for (const option of ['-o', '--pidfile']) {
          for (const more of [[], ['-d']]) {
            const args = ['--port', '0', '-D', join(dir, 'target'), option, join(place, name), ...more]
            refused(await within(run('cache', args)), 1, `${join(place, name)} ${reason}`)
          }
        }
      }
    }
    assert.is(readFileSync(join(dir, 'precious'), 'utf8'), 'precious\n')
    assert.not(existsSync(join(dir, 'made')))
    assert.not(existsSync(join(dir, 'target')), 'refused before anything is made')
  })

  test('below a directory of his, images go nowhere else: he moves them away and puts a link there', async ({
    dir,
  }) => {
    const his = made(join(dir, 'his'), 0o755, HE)
    made(join(dir, 'victim'), 0o755)
    const stream = join(dir, 'stream')
    assert.is((await shell(`dump-to-stdout --from-dir ${images} > ${stream}`)).code, 0)
    const held = `{ head -c 60 ${stream}; until [ -e ${dir}/go ]; do sleep 0.05; done; tail -c +61 ${stream}; }`
    const restore = start('bash', ['-c', `${held} | restore-from-socket --to-dir ${his}/out`])
    const partial = await eventually(
      () => readdirSync(his).find((name) => name.startsWith('.out.partial-')),
      'the partial directory',
    )
    he(`mv ${partial} away && ln -s ${dir}/victim ${partial}`, his)
    writeFileSync(join(dir, 'go'), '')
    const ran = await within(restore.ended)
    refused(ran, 1, `${his}/${partial} is not what was written: somebody has exchanged it`)
    assert.equal(readdirSync(join(dir, 'victim')), [])
    assert.equal(readdirSync(his), [partial], 'what was written is gone, wherever he has put it')
    const alone = await shell(`restore-from-socket --to-dir ${his}/good < ${stream}`)
    assert.is(alone.code, 0, alone.stderr)
    assert.equal(
      readdirSync(join(his, 'good')).sort(),
      readdirSync(images)
        .filter((name) => name.endsWith('.img'))
        .sort(),
    )
  })

  test('a criu that he can change is not started', async ({ dir }) => {
    const his = made(join(dir, 'his'), 0o755, HE)
    const line = '#!/bin/sh\ntouch ran\n'
    writeFileSync(join(his, 'criu'), line, { mode: 0o755 })
    writeFileSync(join(dir, 'criu'), line, { mode: 0o755 })
    chmodSync(join(dir, 'criu'), 0o777)
    for (const [criu, reason] of [
      [join(his, 'criu'), `${his} belongs to ${him}`],
      [join(dir, 'criu'), `${dir}/criu can be written by everybody`],
    ] as const) {
      const message = `${criu} is not started: ${reason}`
      refused(await shell('dump-to-stdout -t $$ | cat', { cwd: dir, env: { FERRY_CRIU: criu } }), 5, message)
      refused(await shell(`cache --port 0 -D target --restore --criu ${criu}`, { cwd: dir }), 5, message)
      refused(await shell(`restore-from-socket --criu ${criu} < /dev/null`, { cwd: dir }), 5, message)
    }
    assert.not(existsSync(join(dir, 'ran')))
  })
}

test('a starter that is no descriptor of ours is refused in a line', async ({ dir }) => {
  for (const value of ['abc', '', '9', '1']) {
    const ran = await run('cache', ['--port', '0', '-D', join(dir, 'target')], { env: { FERRY_STARTER_FD: value } })
    assert.is(ran.code, 2, value)
    assert.match(ran.stderr, /^cache: error: FERRY_STARTER_FD[^\n]*\n(cache: hint: [^\n]+\n)?$/, value)
  }
})

test.run()
