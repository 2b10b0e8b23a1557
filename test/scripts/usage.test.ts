import { readdirSync } from 'node:fs'
import { join } from 'node:path'
import { suite } from 'uvu'
import * as assert from 'uvu/assert'
import { cacheOptions } from '../../lib/cli/cache-options.ts'
import { commonOptions } from '../../lib/cli/common-options.ts'
import { dumpOptions } from '../../lib/cli/dump-options.ts'
import { flattenOptions } from '../../lib/cli/flatten-options.ts'
import { preCopyOptions } from '../../lib/cli/pre-copy-options.ts'
import { proxyOptions } from '../../lib/cli/proxy-options.ts'
import { restoreOptions } from '../../lib/cli/restore-options.ts'
import { run, shell, temporary } from '../support/run.ts'

const test = suite('scripts/usage')

const commands = {
  'dump-to-stdout': dumpOptions,
  'restore-from-socket': restoreOptions,
  proxy: proxyOptions,
  cache: cacheOptions,
  flatten: flattenOptions,
  'pre-copy': preCopyOptions,
}

for (const [command, options] of Object.entries(commands)) {
  test(`${command} --help: stdout, exit 0, the options that the command takes and no other`, async () => {
    const ran = await run(command, ['--help'])
    assert.is(ran.code, 0)
    assert.is(ran.stderr, '')
    const help = ran.stdout.toString()
    assert.match(help, new RegExp(`^usage: ${command} `))
    assert.match(help, /exit codes:[\s\S]*example, on the/)
    const lists = new Set([...help.matchAll(/^ {2}.{0,8}--([a-z-]+)/gm)].map(([, name]) => name))
    for (const option of Object.keys({ ...options, ...commonOptions })) {
      assert.match(help, new RegExp(`--${option}\\b`))
      lists.delete(option)
    }
    assert.equal([...lists], [])
  })
}

test('--version is the package version', async () => {
  assert.match((await run('proxy', ['--version'])).stdout.toString(), /^\d+\.\d+\.\d+\n$/)
})

const misuse: [line: string, message: RegExp][] = [
  ['dump-to-stdout', /--tree is missing/],
  ['dump-to-stdout --from-dir x --dedup', /unknown option '--dedup'/],
  ['dump-to-stdout --bogus', /unknown option '--bogus'/],
  ['dump-to-stdout -t', /argument missing/],
  ['dump-to-stdout -t 12x', /--tree wants a number/],
  ['dump-to-stdout -t 0', /--tree wants a number/],
  ['dump-to-stdout stray', /unexpected argument 'stray'/],
  ['dump-to-stdout -t 1 --listen -D x', /--tree and --listen do not go together/],
  ['dump-to-stdout -t 1 --from-dir x', /--tree and --from-dir do not go together/],
  ['dump-to-stdout --from-dir x -D y', /--dir and --from-dir do not go together/],
  ['dump-to-stdout --from-dir x -- -v4', /criu options do not go together/],
  ['dump-to-stdout --listen', /--dir is missing/],
  ['dump-to-stdout --from-dir x --snapshot ../y', /snapshot id refused/],
  ['dump-to-stdout -t 1 -- -D x', /criu option -D cannot be used here/],
  ['dump-to-stdout -t 1 -- --page-server', /criu option --page-server cannot be used here/],
  ['dump-to-stdout -t 1 -- --prev-images-dir=x', /criu option --prev-images-dir cannot be used here/],
  ['dump-to-stdout -t 1 -- --auto-dedup', /criu option --auto-dedup cannot be used here/],
  ['restore-from-socket --from nowhere', /not an endpoint: nowhere/],
  ['restore-from-socket --from 127.0.0.1:70000', /not an endpoint/],
  ['restore-from-socket --from fd:99 --to-dir x', /fd 99 is not open/],
  ['restore-from-socket --listen', /--dir is missing/],
  ['restore-from-socket --listen -D x --to-dir y', /--listen and --to-dir do not go together/],
  ['restore-from-socket --to-dir y -- -v4', /--to-dir and criu options do not go together/],
  ['restore-from-socket --timeout soon', /--timeout wants seconds/],
  ['restore-from-socket --max-memory lots', /not a size: lots/],
  ['restore-from-socket --from 192.0.2.1:9997 --to-dir x', /plain TCP to or from 192.0.2.1/],
  ['pre-copy -t 1', /--port is missing/],
  ['proxy --port 1 -D x --rate-limit -5', /option '--rate-limit' argument is ambiguous\n/],
  ['pre-copy --port 9997', /--tree is missing/],
  ['pre-copy --port 9997 -t 1 --settle x', /--tree and --settle do not go together/],
  ['pre-copy --port 9997 -t 1 --max-rounds 0', /--max-rounds wants a number from 1 to 1000/],
  ['pre-copy --port 9997 -t 1 --floor much', /not a size: much/],
  ['pre-copy --port 9997 -t 1 --downtime-goal 0.2', /--downtime-goal wants a number from 0 to 60000/],
  ['pre-copy --port 9997 -t 1 -- -R', /criu option -R and pre-copy do not go together/],
  ['pre-copy --port 9997 -t 1 -- --stream', /criu option --stream cannot be used here/],
  ['pre-copy --port 9997 -t 1 -- -W /tmp', /criu option -W cannot be used here/],
  ['pre-copy --port 9997 -t 1 --address 192.0.2.1', /plain TCP to or from 192.0.2.1/],
  ['proxy -D x', /--port is missing/],
  ['cache --port 1 -D x --allow-uid 1 --insecure', /--allow-uid and --insecure do not go together/],
  [
    'cache --port 1 -D x --allow-uid 1 --tls --tls-cacert a --tls-cert b --tls-key c',
    /--allow-uid and --tls do not go together/,
  ],
  ['cache --port 1 -D x --allow-uid 1 --key-file k', /--allow-uid and --key-file do not go together/],
  ['cache --port 1 -D x --allow-uid nobody', /--allow-uid wants a number from 0/],
  ['cache --port 1 -D x --allow-uid=-1', /--allow-uid wants a number from 0/],
  ['proxy --port 9997', /--dir is missing/],
  ['proxy --port 9997 -D x --connections 0', /--connections wants a number from 1 to 16/],
  ['proxy --port 9997 -D x --connections 17', /--connections wants a number from 1 to 16/],
  ['proxy --ps-socket 3 -D x --connections 2 3</dev/null', /--ps-socket and --connections do not go together/],
  ['proxy --port 0 -D x', /--port wants a number/],
  ['proxy --port 9997 -D x --address 192.0.2.1', /plain TCP to or from 192.0.2.1/],
  ['proxy --port 9997 -D x --compress gzip', /--compress wants none or auto or zstd or lz4, not gzip/],
  ['proxy --port 9997 -D x --rate-limit fast', /not a size: fast/],
  ['dump-to-stdout -t 1 --rate-limit 100', /--rate-limit 100 is less than 64k/],
  ['cache -D x', /--port is missing/],
  ['cache --port 9997', /--dir is missing/],
  ['cache --port 9997 -D x --keep --release-early', /--keep and --release-early do not go together/],
  ['cache -D x --ls --rm y', /--ls and --rm do not go together/],
  ['cache -D x --rm y --drop y', /--rm and --drop do not go together/],
  ['cache -D x --rm ../y', /snapshot id refused/],
  ['cache -D x --json', /--json is for --ls/],
  ['cache --ls', /--dir is missing/],
  ['cache --port 70000 -D x', /--port wants a number/],
  ['cache --port 9997 -D x --address 0.0.0.0', /plain TCP to or from 0.0.0.0/],
  ['flatten --to-dir x', /--dir is missing/],
  ['flatten -D x', /--to-dir is missing/],
  ['flatten -D x --to-dir y -- -v4', /flatten and criu options do not go together/],
]

test('a cache that could never restore says so before a source relies on it, and leaves no socket', async () => {
  const { path, remove } = temporary()
  const deep = join(path, 'd'.repeat(80 - path.length))
  const ran = await shell(`cache --port 0 -D ${deep} --restore`, { cwd: path, env: { FERRY_CRIU: '/bin/true' } })
  assert.is(ran.code, 2, ran.stderr)
  assert.match(ran.stderr, /^cache: error: [^\n]*path[^\n]*\ncache: hint: [^\n]+\n$/)
  assert.equal(readdirSync(deep), [])
  remove()
})

test('misuse: one line, a hint or a reason, exit 2, nothing made', async () => {
  const { path, remove } = temporary()
  const env = { FERRY_CRIU: '/bin/false' }
  for (const [line, message] of misuse) {
    const ran = await shell(line, { cwd: path, env })
    assert.is(ran.code, 2, `${line}: ${ran.stderr}`)
    assert.match(ran.stderr, message, line)
    assert.match(ran.stderr, /^[a-z-]+: error: [^\n]+\n([a-z-]+: hint: [^\n]+\n)?$/, line)
    assert.is(ran.stdout.length, 0, line)
    assert.equal(readdirSync(path), [], line)
  }
  remove()
})

test('no criu, no process, no directory: said in a line', async () => {
  const none = await shell('dump-to-stdout -t 1 | cat', { env: { FERRY_CRIU: 'none' } })
  assert.is(none.code, 5)
  assert.match(none.stderr, /FERRY_CRIU=none/)
  const wrong = await shell('dump-to-stdout -t 1 --criu /nowhere/criu | cat')
  assert.is(wrong.code, 5)
  assert.match(wrong.stderr, /no criu at \/nowhere\/criu/)
  const gone = await shell('dump-to-stdout -t 4194304 --criu /bin/false | cat')
  assert.is(gone.code, 1)
  assert.match(gone.stderr, /no process 4194304/)
  const forbidden = await shell('proxy --port 9 -D /proc/nowhere')
  assert.is(forbidden.code, 1)
  assert.match(forbidden.stderr, /cannot make the directory/)
  const long = await shell(`proxy --port 9 -D /tmp/${'x'.repeat(100)}; rmdir /tmp/xxx*; exit 2`)
  assert.match(long.stderr, /socket path is longer than 107 bytes/)
})

test.run()
